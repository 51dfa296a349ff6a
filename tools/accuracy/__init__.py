"""What quantisation costs in accuracy, on real tasks with held-out data: `python -m secateur.tools.accuracy`."""
