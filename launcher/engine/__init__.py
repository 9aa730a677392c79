"""Training on every rank: one mixin over transformers' Trainer, its data loader, checkpoints and trackers."""
