"""The smallest service: curl 127.0.0.1:8080/hello/you, then open 127.0.0.1:8080/_tasks."""

from aiohttp import web

from aiohttp_observe import setup_observability


async def hello(request: web.Request) -> web.Response:
    return web.json_response({"hello": request.match_info["name"]})


app = web.Application()
app.router.add_get("/hello/{name}", hello)
setup_observability(app)

if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=8080)
