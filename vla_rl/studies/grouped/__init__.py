"""Critic or groups, fresh or over replay: episodes until a given success, far from the ceiling and near it."""
