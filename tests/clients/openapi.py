"""Schemathesis: thousands of requests that the server's own OpenAPI document allows or forbids. None may be the server's failure,
every answer must be as the document says, and what it forbids must be refused.

    python3 openapi.py FERRUM MODEL [EXAMPLES [SEED]]     (a tiny model)
"""

import os
import subprocess
import sys
import tempfile

from server import serving

CHECKS = [
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
    "negative_data_rejection", "unsupported_method", "ignored_auth",
]
examples, seed = (sys.argv[3:] + ["100", "1"][len(sys.argv) - 3:])[:2]
schemathesis = os.path.join(os.path.dirname(os.path.abspath(sys.executable)), "schemathesis")
with serving(*sys.argv[1:3], "--ctx", "256", "--api-key", "secret") as url, tempfile.TemporaryDirectory() as cache:
    # Events about the cache do not end, so they are left out.
    subprocess.run([schemathesis, "run", f"{url}/openapi.json", "--header", "Authorization: Bearer secret", "--exclude-path", "/v1/kv_events",
                    "--checks", ",".join(CHECKS), "--phases", "coverage,fuzzing", "--continue-on-failure", "--no-color",
                    "--max-examples", examples, "--seed", seed], check=True, cwd=cache)
