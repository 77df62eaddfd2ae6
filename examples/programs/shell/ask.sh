#!/bin/sh
# Standard input is the question; what is printed is the answer.
set -eu
read -r question
curl -sS --fail-with-body "$OPENAI_BASE_URL/chat/completions" \
    -H "Authorization: Bearer $OPENAI_API_KEY" -H 'Content-Type: application/json' \
    -d "{\"messages\": [{\"role\": \"user\", \"content\": \"$question\"}]}" |
    sed 's/.*"content":"\([^"]*\)".*/\1/'
