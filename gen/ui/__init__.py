"""The page of `fewstep ui`: draws in a browser, on this machine.

`jobs.py`, `gallery.py`, `models.py` and `forms.py` know nothing of the page and of NiceGUI; `studio.py` joins them. `server.py`
and `guard.py` serve; `page.py` is the frame, `tabs/` has a file for each tab and `panels/` one for each part of them.
"""
