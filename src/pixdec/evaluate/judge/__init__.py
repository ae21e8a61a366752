"""Which of two images is better: a language model that sees images is asked, or a person, in pairs and blindly.

    pairs = find_pairs("ours", ["theirs"])
    outcomes = list(judge_pairs(pairs, Endpoint("http://127.0.0.1:8000/v1", "a-model"), "out/judge.jsonl"))
    figures = summarize("out/judge.jsonl")

`pairs` says what is shown, `prompt` what is asked, `endpoint` who answers; `asking` asks, and keeps every answer
(`rounds`); `human` asks a person; `rates` counts.
"""
