"""Work in the background of each gunicorn worker."""


def post_worker_init(_worker):
    import calls

    calls.work_in_background()
