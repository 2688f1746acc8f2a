"""One page that explains a circuit: its files become a single HTML file that needs no network."""

from persona_circuits.circuit.page.data import page_of_run
from persona_circuits.circuit.page.html import is_page, page_faults, page_html, read_page
from persona_circuits.circuit.page.notebook import CircuitPage, circuit_page
from persona_circuits.circuit.page.run import run_data

__all__ = ["CircuitPage", "circuit_page", "is_page", "page_faults", "page_html", "page_of_run", "read_page", "run_data"]
