"""Kernels as scikit-learn's estimators: in a Pipeline, a GridSearchCV, a ColumnTransformer."""

from jsel.sklearn.clusters import KMeans
from jsel.sklearn.subset import KCenter
from jsel.sklearn.transformers import RademacherProjection, Whitening

__all__ = ["KCenter", "KMeans", "RademacherProjection", "Whitening"]
