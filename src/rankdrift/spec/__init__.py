"""The experiment: its settings (sections), how they are read (recipe), which make a run (identity)."""

from rankdrift.spec.recipe import (
    DEFAULT_RECIPE,
    RECIPES,
    Recipe,
    analysis_settings,
    apply_overrides,
    load_recipe,
    parse_spec,
    read_recipe,
    read_spec,
    read_tree,
    recipe_of,
)
from rankdrift.spec.sections import (
    AnalysisSpec,
    DataSpec,
    MethodSpec,
    MixtureSpec,
    ModelSpec,
    ScoringSpec,
    Spec,
    TrainingSpec,
)

__all__ = [
    "DEFAULT_RECIPE",
    "RECIPES",
    "AnalysisSpec",
    "DataSpec",
    "MethodSpec",
    "MixtureSpec",
    "ModelSpec",
    "Recipe",
    "ScoringSpec",
    "Spec",
    "TrainingSpec",
    "analysis_settings",
    "apply_overrides",
    "load_recipe",
    "parse_spec",
    "read_recipe",
    "read_spec",
    "read_tree",
    "recipe_of",
]
