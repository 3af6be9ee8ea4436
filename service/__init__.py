"""The online half: answers HTTP requests from one loaded version. Never imports torch."""
