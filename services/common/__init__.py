"""What every service is made of; knows no service."""
