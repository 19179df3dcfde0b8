"""EleutherAI's evaluation harness against a server, as `local-completions`: it tokenizes by the server, scores by `echo` with
`logprobs`, and generates up to stop strings.

    python3 harness.py FERRUM MODEL
"""

import json
import os
import sys
import tempfile
from importlib.metadata import version

from server import serving

os.environ["HF_DATASETS_OFFLINE"] = "1"
import lm_eval

QUESTIONS = [
    ("The capital of France is", " Paris", " purple"),
    ("One, two, three, four,", " five", " table"),
    ("The opposite of hot is", " cold", " seven"),
    ("Monday, Tuesday, Wednesday,", " Thursday", " because"),
]

with serving(*sys.argv[1:3]) as url, tempfile.NamedTemporaryFile("w", suffix=".jsonl") as questions:
    for text, right, wrong in QUESTIONS:
        print(json.dumps({"text": text, "choices": [right, wrong]}), file=questions, flush=True)
    task = {"dataset_path": "json", "dataset_kwargs": {"data_files": questions.name}, "test_split": "train", "doc_to_text": "{{text}}"}
    choose = task | {"task": "choose", "output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": 0,
                     "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]}
    go_on = task | {"task": "go_on", "output_type": "generate_until", "doc_to_target": "{{choices[0]}}",
                    "generation_kwargs": {"until": ["\n", ","], "max_gen_toks": 8, "temperature": 0},
                    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, "regexes_to_ignore": ["[ ,.].*$"]}]}
    arguments = f"model=m,base_url={url}/v1/completions,num_concurrent=4,max_length=1024"
    results = lm_eval.simple_evaluate("local-completions", model_args=arguments, tasks=[choose, go_on], bootstrap_iters=0)
    got = {name: [score for metric, score in scores.items() if metric.endswith(",none") and "stderr" not in metric]
           for name, scores in results["results"].items()}
    assert got == {"choose": [1.0], "go_on": [1.0]}, got
print("lm-eval", version("lm-eval"), "ok")
