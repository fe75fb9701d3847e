"""The store in PostgreSQL, which several servers share. Only a server with DATABASE_URL loads it."""
