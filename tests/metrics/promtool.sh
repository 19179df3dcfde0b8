#!/usr/bin/env bash
# Usage: promtool.sh FERRUM MODEL. What `promtool check metrics` (Debian: `apt-get install prometheus`) says of a server that has
# answered something. vLLM's names have colons, and `iteration_tokens_total` is a histogram there: of these it may complain.
set -euo pipefail
ferrum=$1 model=$2
log=$(mktemp)
"$ferrum" serve "$model" --port 0 2>"$log" &
server=$!
trap 'kill $server; rm -f "$log"' EXIT
for _ in $(seq 600); do
    grep -q ready "$log" && break
    sleep 0.1
done
url=$(grep -o 'http://[0-9.:]*' "$log" | head -1)
curl --silent --show-error --fail --output /dev/null "$url/v1/completions" --json '{"prompt": "the cat", "max_tokens": 8}'
# 3: it has complaints; anything else but 0: it could not read the metrics.
status=0
complaints=$(curl --silent --show-error --fail "$url/metrics" | promtool check metrics 2>&1) || status=$?
test "$status" -eq 0 -o "$status" -eq 3 || { echo "$complaints"; exit 1; }
if grep -v -e "should not contain ':'" -e 'vllm:iteration_tokens_total non-counter' <<<"$complaints" | grep .; then
    exit 1
fi
echo "promtool: nothing but the names that are vLLM's"
