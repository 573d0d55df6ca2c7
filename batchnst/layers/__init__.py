"""The sheet of `batchnst layers`: what each layer of a network responds to and holds of a picture."""
