"""Metering: what each request used and cost, what it may use, and the prices.

Usage is kept in SQLite and computed from the audit log alone; limits are kept in memory and
seeded from usage.
"""

from appliance.metering.account import Account, Amount, Demand
from appliance.metering.fold import catch_up, rebuild, unbilled
from appliance.metering.limiter import Clock, Limiter, Reservation, Standing, Subject
from appliance.metering.meter import Meter
from appliance.metering.money import MICRO, format_money, parse_money
from appliance.metering.price import FREE, Price, Tariff, no_price
from appliance.metering.prices import PriceTable
from appliance.metering.report import (
    DIMENSIONS,
    NOBODY,
    BucketRow,
    Column,
    Dimension,
    Filter,
    ReportRow,
    Spent,
)
from appliance.metering.retention import prune_settled
from appliance.metering.row import UsageRow, usage_row

__all__ = [
    "DIMENSIONS",
    "FREE",
    "MICRO",
    "NOBODY",
    "Account",
    "Amount",
    "BucketRow",
    "Clock",
    "Column",
    "Demand",
    "Dimension",
    "Filter",
    "Limiter",
    "Meter",
    "Price",
    "PriceTable",
    "ReportRow",
    "Reservation",
    "Spent",
    "Standing",
    "Subject",
    "Tariff",
    "UsageRow",
    "catch_up",
    "format_money",
    "no_price",
    "parse_money",
    "prune_settled",
    "rebuild",
    "unbilled",
    "usage_row",
]
