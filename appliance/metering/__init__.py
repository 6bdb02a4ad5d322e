"""Metering: what each request used, kept in SQLite, computed from the audit log alone."""

from appliance.metering.fold import catch_up, rebuild
from appliance.metering.meter import DIMENSIONS, Dimension, Meter, ReportRow
from appliance.metering.money import MICRO, format_money, parse_money
from appliance.metering.row import UsageRow, usage_row

__all__ = [
    "DIMENSIONS",
    "MICRO",
    "Dimension",
    "Meter",
    "ReportRow",
    "UsageRow",
    "catch_up",
    "format_money",
    "parse_money",
    "rebuild",
    "usage_row",
]
