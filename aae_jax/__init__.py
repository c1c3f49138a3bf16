"""Adversarial Autoencoders (Makhzani et al., 2015, arXiv:1511.05644) in JAX and Flax."""
