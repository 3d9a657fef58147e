"""Pictures for people: predictions and truths drawn on images, sheets of them, and curves."""

from vitdense.visualize.colors import palette
from vitdense.visualize.pictures import draw, draw_target
from vitdense.visualize.sheets import contact_sheet, plot_curves

__all__ = ['contact_sheet', 'draw', 'draw_target', 'palette', 'plot_curves']
