"""Pretraining: FASTA files become a token corpus, the corpus becomes batches, megatron-core trains the GLM on them."""
