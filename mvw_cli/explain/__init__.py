"""One page that shows a run: the answer token by token, and which patches each token looked at.

`record.py` watches the run, `patches.py` says where vision tokens lie in the pictures, `data.py`
puts both into a document, `page.py` writes the page around it.
"""
