"""The library's tables and every statement that touches them; imports no Airflow."""
