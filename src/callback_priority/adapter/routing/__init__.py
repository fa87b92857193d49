"""Requests that Airflow sends to the Dag processor, turned into callbacks of workers and the triggerer."""
