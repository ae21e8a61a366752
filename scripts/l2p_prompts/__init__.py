"""The shipped list of prompts: subjects, places and details, put together by rule."""
