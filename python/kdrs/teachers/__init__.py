"""Where knowledge comes from: a trained model, a peer in training, or a file that another library wrote."""
