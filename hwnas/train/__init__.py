"""Training a supernet: data, Algorithm 1 of AutoViT, checkpoints, and measuring accuracy."""

from hwnas.train._data import Data, Split
from hwnas.train._evaluate import accuracy, inherited_accuracy
from hwnas.train._load import load_data
from hwnas.train._loop import train
from hwnas.train._recipe import DIGITS, Recipe, default_image_size, default_recipe
from hwnas.train._run import Run, load_run

__all__ = [
    "DIGITS",
    "Data",
    "Recipe",
    "Run",
    "Split",
    "accuracy",
    "default_image_size",
    "default_recipe",
    "inherited_accuracy",
    "load_data",
    "load_run",
    "train",
]
