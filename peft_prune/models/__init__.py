"""What the package knows of transformers models: their parts, their tokenizers, how they are run and told apart."""
