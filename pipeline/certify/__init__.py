"""The certificate: every trainer against the exactly known optimum of a small problem.

See `pipeline.certify.problem` for the problem, `pipeline.certify.optima` for where each method
ends, `docs/certificate.md` for what came out.
"""
