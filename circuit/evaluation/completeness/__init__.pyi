from .report import CompletenessOptions as CompletenessOptions
from .report import CompletenessReport as CompletenessReport
from .report import completeness_report as completeness_report
from .share_intervals import growth_p as growth_p
from .share_intervals import shares as shares
