"""Programs of bundles: run in a sandbox, with the model proxy as their only way out."""
