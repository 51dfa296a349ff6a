"""Fine-tuning: quantisation-aware training and distillation from the float model."""
