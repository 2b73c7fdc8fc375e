// PostGraphile over ../schema.sql: tell the database what PostgREST would tell it.
const http = require('node:http');
const { postgraphile } = require('postgraphile');

const middleware = postgraphile(process.env.DATABASE_URL, 'api', {
  pgSettings: (req) => ({
    role: 'web_user',
    // X-User stands for the authenticated user: take it from your session or token, since whoever
    // may choose it gets every user's answers.
    'request.jwt.claims': JSON.stringify({ sub: req.headers['x-user'] }),
    'request.headers': JSON.stringify(req.headers),
    'request.method': req.method,
    'request.path': '/graphql',
    // Another body under the same key is refused, whatever mutations it has.
    'request.body': JSON.stringify(req.body),
  }),
});

const server = http.createServer(middleware);
server.listen(process.env.PORT, '127.0.0.1', () => console.log(`listening on ${server.address().port}`));
process.on('SIGTERM', () => process.exit(0));
