"""Ask what to try next, with runs of your own: python examples/own_runs.py

examples/runs.csv is made up: three sizes, a learning rate whose optimum falls with size, runs that
crashed. Put your own file in its place.
"""

from autollm_jax.advise import reading
from autollm_jax.advise.advisor import Advisor
from autollm_jax.advise.words import advice_text

rows = reading.read("examples/runs.csv")
advisor = Advisor.from_runs(rows, target="parameters=1.4e9,tokens=28e9", objective="val_loss")
print(advisor.known.describe())
advice = advisor.ask()
print(advice_text(advisor, advice))

# The run was made; tell what came, and ask again.
advisor = advisor.tell(advice.config, outcome=2.97)
print(advice_text(advisor, advisor.ask()))
