"""The words by which analyses are asked for, where a command line can read them without loading what computes."""

from typing import Literal, TypeAlias

__all__ = ["ClusterMethod", "ConventionName", "HeadConvention", "Method", "Position"]

HeadConvention: TypeAlias = Literal["valid", "thesis"]
ConventionName: TypeAlias = Literal["exact", "nanochat"]
ClusterMethod: TypeAlias = Literal["ward", "kmeans", "gmm"]
Method: TypeAlias = Literal["mean_diff", "probe", "pca"]
Position: TypeAlias = Literal["mean", "last", "response"]
