"""What `train_ensemble` is made of: variants, decoders, revival of silent features, checkpoints, trace, memory."""
