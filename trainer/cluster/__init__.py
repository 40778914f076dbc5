"""What asks a Kubernetes API server: the deploy tool `python -m trainer.cluster`, and the trainer itself."""
