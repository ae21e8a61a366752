"""What an evaluation leaves for people: tables, sample sheets, and one page with everything."""
