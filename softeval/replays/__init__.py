"""Finished runs replayed: KL to the base model, and the answers after changed CoTs."""
