"""Advice on the next expensive run, from a person's own cheap runs.

advisor = Advisor.from_runs(rows, target={"parameters": 7e9, "tokens": 2e11}, objective="loss")
print(advisor.ask())

1. reading: files of runs, as rows of named values
2. values: what a cell of such a file means, number or text
3. understanding: which columns are hyperparameters, fidelity, objective, status, seed
4. runs: rows as runs; what cannot be used is named
5. question: runs as experiments (`evidence`), a target to choose for (`setting`) and trials
6. advisor: the next configuration, with its prediction and reasons (`decider`, `intervals`)
"""
