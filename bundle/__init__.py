"""Treatment-aware diffusion forecasts of new or enlarging T2 (NET2) lesions in multiple sclerosis."""

__version__ = "0.3.0.dev0"
