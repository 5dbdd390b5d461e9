"""The live engine: a process that keeps dictionaries and models on the device and answers the pages' queries.

It talks over a socket that only its owner can open, and writes nothing but the record of its crashes. Refused are queries of
unpublished studies, files outside a study's folder, and queries that crashed it repeatedly.
"""
