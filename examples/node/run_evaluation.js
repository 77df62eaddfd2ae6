// Run an evaluation over gRPC: create a run, watch it, read its report.

import { randomUUID } from "node:crypto";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const protos = process.env.BENCHGEN_PROTOS ?? fileURLToPath(new URL("../../protos", import.meta.url));
const contracts = protoLoader.loadSync(["benchgen/eval/v1/run.proto", "benchgen/eval/v1/result.proto"], {
  includeDirs: [protos],
  keepCase: true, // snake_case names, as the contracts have them
  enums: String,
  defaults: true,
});
const { RunService, ResultService } = grpc.loadPackageDefinition(contracts).benchgen.eval.v1;

const [environment, model] = process.argv.slice(2);
const key = new grpc.Metadata();
key.set("authorization", `Bearer ${process.env.BENCHGEN_API_KEY}`);
const credentials = grpc.credentials.createInsecure();
const runs = new RunService(process.env.BENCHGEN_SERVER, credentials);
const results = new ResultService(process.env.BENCHGEN_SERVER, credentials);

// The same request_id again would answer with the same run.
const request = { request_id: randomUUID(), environment, model, selection: { limit: 20 } };
const run = await promisify(runs.CreateRun).call(runs, request, key);
for await (const { name, state, spec, progress } of runs.WatchRun({ name: run.name }, key)) {
  console.log(name, state.replace("STATE_", "").toLowerCase(), `${progress?.recorded ?? 0}/${spec.planned}`);
}
const report = await promisify(results.GetReport).call(results, { run: run.name }, key);
const { mean, ci95, n } = report.metrics[report.primary_rule];
const [low, high] = ci95.map((end) => end.toFixed(3));
console.log(`${report.primary_rule}: ${mean.toFixed(3)} (95 % interval ${low} to ${high}, n = ${n})`);

runs.close();
results.close();
