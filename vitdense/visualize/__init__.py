"""Images for people: predictions and truths drawn on images, sheets of them, features, and curves."""

from vitdense.visualize.colors import palette
from vitdense.visualize.curves import plot_curves
from vitdense.visualize.features import heat_map, principal_colors
from vitdense.visualize.predictions import draw, draw_target
from vitdense.visualize.sheets import arrange, contact_sheet

__all__ = [
    'arrange',
    'contact_sheet',
    'draw',
    'draw_target',
    'heat_map',
    'palette',
    'plot_curves',
    'principal_colors',
]
