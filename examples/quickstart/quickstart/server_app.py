"""The server: one LLM, one strategy, two rounds."""

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from pdss_fl.config import RunSettings
from pdss_fl.server_app import load_generator
from pdss_fl.strategy import StepByStepDistillation

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Distil for the rounds that the settings ask for and print what the clients reported."""
    settings = RunSettings.from_run_config(context.run_config)
    strategy = StepByStepDistillation(load_generator(settings.llm), quorum=2)
    result = strategy.start(grid, ArrayRecord(), num_rounds=settings.num_server_rounds)
    for server_round, metrics in result.evaluate_metrics_clientapp.items():
        print(f"round {server_round}: {metrics['correct']} of {metrics['num-examples']} questions right")
