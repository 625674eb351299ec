"""The words for how clusters and directions are found; a command line reads them without loading what computes."""

from typing import Literal, TypeAlias

__all__ = ["ClusterMethod", "Method", "Position"]

ClusterMethod: TypeAlias = Literal["ward", "kmeans", "gmm"]
Method: TypeAlias = Literal["mean_diff", "probe", "pca"]
Position: TypeAlias = Literal["mean", "last", "response"]
"""What stands for an example: the mean over its tokens, its last one, or the mean over its response."""
