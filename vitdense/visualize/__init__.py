"""Visualisation: predictions and targets on images, contact sheets, feature maps and training curves."""

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
