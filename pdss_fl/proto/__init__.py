"""Generated from ``proto/pdss_fl/proto/distillation.proto`` by ``make proto``; do not edit."""
