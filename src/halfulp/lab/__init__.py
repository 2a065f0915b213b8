"""Experiments on real text: train a small model under several state formats, measure the states, and write a report.

* :mod:`~halfulp.lab.arms`, :mod:`~halfulp.lab.config`: what is compared, and everything else that a run depends on;
* :mod:`~halfulp.lab.text`, :mod:`~halfulp.lab.tokens`: from files to tokens; :mod:`~halfulp.lab.model`: the model;
* :mod:`~halfulp.lab.train`: one arm in one process; :mod:`~halfulp.lab.compare`: all arms in parallel;
* :mod:`~halfulp.lab.results`: reading a run folder; :mod:`~halfulp.lab.page`, :mod:`~halfulp.lab.figure`: the report.
"""
