"""Which of two images is better: a language model that sees images is asked, or a person, in pairs and blindly.

    pairs = find_pairs("ours", ["theirs"])
    judge = Endpoint("http://127.0.0.1:8000/v1", "a-model")
    outcomes = list(judge_pairs(pairs, judge, "out/judge.jsonl"))
    print(*table(summarize("out/judge.jsonl")), sep="\n")

`pairs` says what is shown, `prompt` what is asked, `client` who answers, `asking` asks and keeps every answer (`rounds`), `human`
asks a person, and `table` counts.
"""
