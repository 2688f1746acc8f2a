"""What the command line and files say of circuits."""

from persona_circuits.circuit.discovery.summary import completeness_lines as completeness_lines
from persona_circuits.circuit.discovery.summary import faithfulness_table as faithfulness_table
from persona_circuits.circuit.discovery.summary import head_tables as head_tables
from persona_circuits.circuit.discovery.summary import neuron_tables as neuron_tables
from persona_circuits.circuit.discovery.summary import path_table as path_table
from persona_circuits.circuit.discovery.summary import set_table as set_table
from persona_circuits.circuit.discovery.summary import size_table as size_table
from persona_circuits.circuit.discovery.summary import strongest_edges as strongest_edges
from persona_circuits.circuit.discovery.summary import summary as summary
from persona_circuits.circuit.discovery.writing import title_of as title_of
from persona_circuits.circuit.discovery.writing import write_discovery as write_discovery
from persona_circuits.circuit.evaluation.curves.tables import area_rows as area_rows
from persona_circuits.circuit.evaluation.curves.tables import curve_records as curve_records
from persona_circuits.circuit.evaluation.curves.tables import curve_rows as curve_rows
from persona_circuits.circuit.evaluation.curves.tables import curve_tables as curve_tables
from persona_circuits.circuit.evaluation.curves.tables import size_rows as size_rows
from persona_circuits.circuit.evaluation.curves.tables import sweep_table as sweep_table
from persona_circuits.circuit.evaluation.span_files import write_specificity as write_specificity
from persona_circuits.circuit.reporting.comparison import comparison_tables as comparison_tables
from persona_circuits.circuit.reporting.curves import write_curves as write_curves
from persona_circuits.circuit.reporting.evaluation import write_tests as write_tests
from persona_circuits.circuit.reporting.evaluation_tables import evaluations_table as evaluations_table
from persona_circuits.circuit.reporting.evaluation_tables import pair_tables as pair_tables
from persona_circuits.circuit.reporting.evaluation_tables import stability_table as stability_table
from persona_circuits.circuit.reporting.evaluation_tables import tables as tables
from persona_circuits.circuit.reporting.evaluation_tables import transfer_table as transfer_table
