"""Into Airflow: what it is told of us, the hook in its scheduler, its rows in our terms."""
