"""The theory of stalling: predictions (:mod:`~halfulp.theory.predict`), resets (:mod:`~halfulp.theory.planner`)."""
